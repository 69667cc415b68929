"""Whatever comes in wrong, one line says what was expected, what was got and what to do, with exit code 2."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from tempspec.models.loading import load_tokenizer, save_model


class Touch:
    """What a pickle can do: unpickling one makes the file `pwned`."""

    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@dataclass(frozen=True)
class Case:
    """A command line, what its one line must say, and what lies in the folder that it is called in.

    Args:
        line: the arguments; PAIR and LM stand for fit with a configuration that is fine, WORLD for its folder.
        says: a part of the line.
        prepare: makes files there, given the world's folder.
    """

    line: list[str]
    says: str
    prepare: Callable[[Path], object] = lambda world: None

    def arguments(self, world):
        short = {"PAIR": ["fit", "--config", "WORLD/pair.yaml"], "LM": ["fit", "--config", "WORLD/lm.yaml"]}
        first, *rest = self.line
        return [part.replace("WORLD", str(world)) for part in [*short.get(first, [first]), *rest]]


def option(name, value, says):
    """The pair's configuration with one option changed."""
    return Case(["PAIR", f"--{name}", value], says)


def predict(*options, says, prepare=lambda world: None):
    """The pair's configuration for predict, with options changed."""
    return Case(["predict", "--config", "WORLD/pair.yaml", *options], says, prepare)


def written(name, content):
    """Writes one file, and the folder that it is in."""

    def prepare(world):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def configuration(text, says):
    """A configuration alone."""
    return Case(["fit", "--config", "c.yaml"], says, written("c.yaml", text))


def corpus(name, content, says, **options):
    """A file to train on."""
    source = json.dumps({"path": name} | options)
    return Case(["PAIR", "--data.train", source], says, written(name, content))


def prompts(content, says, **options):
    """A file of prompts."""
    sets = json.dumps({"p": {"path": "p.jsonl"} | options})
    return Case(["predict", "--config", "WORLD/pair.yaml", "--data.prompts", sets], says, written("p.jsonl", content))


def model(damage, says, part="target"):
    """A copy of a model's folder, damaged."""

    def prepare(world):
        shutil.copytree(world / part, "copy")
        damage(Path("copy"))

    return Case(["PAIR", f"--model.{part}", "./copy"], says, prepare)


def edit_config(**changes):
    """Changes a folder's config.json."""

    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Touch()}, folder / "pytorch_model.bin")


def foreign_code(folder):
    edit_config(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})(folder)
    (folder / "mine.py").write_text("from pathlib import Path\nPath('pwned').touch()\n")


def other_vocabulary(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w3"', '"other"'))


def recurrent(folder):
    config = MambaConfig(vocab_size=16, hidden_size=8, state_size=4, num_hidden_layers=1, eos_token_id=0)
    save_model(MambaForCausalLM(config), load_tokenizer(str(folder)), folder)


def checkpoint(content, says):
    """A file that fit is told to go on from."""
    return Case(["PAIR", "--ckpt_path", "c.ckpt"], says, lambda world: torch.save(content, "c.ckpt"))


def held(origin, says, column="key"):
    """A run folder that holds rows of predict, and where they come from."""

    def prepare(world):
        folder = Path("runs/pair/predict")
        folder.mkdir(parents=True)
        if origin is not None:
            (folder / "predictions.origin.json").write_text(origin)
        if column is None:
            (folder / "predictions.parquet").write_text("torn")
        else:
            pq.write_table(pa.table({column: ["a"]}), folder / "predictions.parquet")

    return Case(["predict", "--config", "WORLD/pair.yaml"], says, prepare)


OPTIONS = {
    "no configuration": Case(["fit", "--config", "no.yaml"], "no.yaml"),
    "nothing said": Case(["fit"], "model.target is missing"),
    "unknown task": Case(["fit", "--task", "distil"], "task must be one of distillation, language-model, got 'distil'"),
    "unknown option": option("model.divergnce", "x", "did you mean '--model.divergence'?"),
    "a configuration under a short name": Case(["fit", "--conf", "WORLD/pair.yaml"], "did you mean '--config'?"),
    "a run under a short name": Case(["PAIR", "--ru", "x"], "did you mean '--run'?"),
    "stray argument": Case(["PAIR", "now"], "unexpected argument 'now'"),
    "unknown plugin": option("model.divergence", "JensenShanon", "did you mean 'JensenShannon'?"),
    "unknown callback": option("trainer.callbacks", "ModelCheckpont", "did you mean 'ModelCheckpoint'?"),
    "unknown optimizer": option("model.optimizer", "AdmW", "did you mean 'AdamW'?"),
    "an option of no optimizer": option(
        "model.optimizer.lr", "0.1", "expected the name of a class, or {class_path: NAME"
    ),
    "plugin option": option(
        "model.divergence",
        "{class_path: SkewKL, init_args: {alfa: 1}}",
        "SkewKL has no option 'alfa', did you mean 'alpha'?",
    ),
    "plugin option outside init_args": option("model.divergence", "{class_path: SkewKL, alpha: 1}", "init_args"),
    "plugin value": Case(
        ["PAIR", "--model.divergence", "SkewKL", "--model.divergence.alpha", "x"], "expected float, got x"
    ),
    "plugin range": Case(["PAIR", "--model.divergence", "SkewKL", "--model.divergence.alpha", "7"], "alpha"),
    "forbidden class": option("model.divergence", "os.system", "TEMPSPEC_ALLOW=os"),
    "forbidden instance": option(
        "model.divergence", "{class_path: subprocess.Popen, init_args: {args: ls}}", "TEMPSPEC_ALLOW=subprocess"
    ),
    "wrong number": option("trainer.max_steps", "x", "trainer.max_steps: expected int, got x"),
    "negative temperature": option("model.validation_temperatures", "[-1.0]", "0 or more"),
    "top_p": option("model.sweep.top_p", "1.5", "top_p must be in (0, 1], got 1.5"),
    "missing file": option("data.train", "{path: no.jsonl}", "no.jsonl"),
    "missing folder": option("model.target", "./nowhere", "no such folder: './nowhere'"),
    "GPU": option("trainer.accelerator", "cuda", "CUDA"),
    "no checkpoint": option("ckpt_path", "last", "there is no runs/pair/fit/checkpoints/last.ckpt"),
    "no checkpoint file": option("ckpt_path", "x.ckpt", "there is no such file"),
    "remote checkpoint": option("ckpt_path", "https://example.org/x.ckpt", "must be a local file"),
    "not a checkpoint": option("ckpt_path", "WORLD/text.jsonl", "is not a checkpoint"),
    "Trainer's folder": option("trainer.default_root_dir", "x", "set run: FOLDER"),
    "folder under a file": option("run", "WORLD/text.jsonl/run", "expected a folder where a file is"),
    "two models": Case(["LM", "--model.pretrained", "WORLD/target", "--model.shape.hidden_size", "8"], "not both"),
    "no tokenizer": Case(["LM", "--model.tokenizer", "null"], "needs model.tokenizer"),
    "indivisible": Case(["LM", "--model.shape.hidden_size", "9"], "hidden_size must be an even multiple of heads"),
    "wrong stage": Case(["predict", "--config", "WORLD/lm.yaml"], "predict needs task: distillation"),
}
RANGES = {
    "rows a batch": option("data.batch_size", "0", "batch_size"),
    "length": option("data.max_length", "0", "max_length"),
    "half a row": option("data.batch_size", "1.5", "expected int, got 1.5"),
    "steps": option("trainer.max_steps", "-5", "max_steps"),
    "precision": option("trainer.precision", "7", "precision"),
    "draft layers": Case(["PAIR", "--model.draft", "null", "--model.draft_layers", "9"], "got 9"),
    "temperature bounds": option("model.temperature", "{class_path: Uniform, init_args: {low: 2, high: 1}}", "low"),
    "a temperature that is no number": predict("--model.sweep.target_temperatures", "[.nan]", says="nan"),
    "an infinite temperature": predict("--model.sweep.target_temperatures", "[.inf]", says="inf"),
    "no temperature": predict("--model.sweep.target_temperatures", "[]", says="target_temperatures"),
    "samples": predict("--model.sweep.samples", "0", says="samples"),
    "new tokens": predict("--model.sweep.max_new_tokens", "0", says="max_new_tokens"),
    "slots": predict("--model.sweep.slots", "0", says="slots"),
    "top_k": predict("--model.sweep.top_k", "-1", says="top_k"),
    "min_p": predict("--model.sweep.min_p", "2", says="min_p"),
    "draft temperature": predict("--model.sweep.draft_temperatures", "hot", says="draft_temperatures"),
    "drafted tokens": predict("--model.length", "{class_path: FixedLength, init_args: {k: -1}}", says="FixedLength"),
    "a verifier of another name": predict("--model.verifiers", "{a: BlokVerification}", says="'BlockVerification'"),
    "a sweep that is a number": predict("--model.sweep", "3", says="model.sweep"),
}
CONFIGURATIONS = {
    "open bracket": configuration("model: [\n", "line 2"),
    "unknown section": configuration(
        "modle: {target: a}\n", "unknown key modle.target in the configuration: did you mean 'model'?"
    ),
    "unknown key": configuration("model: {target: a, draf: b}\n", "did you mean 'model.draft'?"),
    "a key of another subcommand": configuration(
        "cache_teacher: true\nmodel: {target: a}\n",
        "unknown key cache_teacher in the configuration: it is an option of generate; leave it out",
    ),
    "unknown key of a source": configuration(
        "data: {train: {pat: x}}\nmodel: {target: a}\n", "Source has no option 'pat', did you mean 'path'?"
    ),
    "an unknown option of a prompt set": configuration(
        "data: {prompts: {p: {pat: x, limit: 3}}}\nmodel: {target: a}\n",
        "data.prompts: PromptSource has no option 'pat', did you mean 'path'?",
    ),
    "not UTF-8": configuration(b"model: {target: caf\xe9}\n", "UTF-8"),
    "control characters": configuration("model: {target: '\x00'}\n", "unacceptable character"),
    "a text that is a number": configuration(
        "data: {train: 3}\nmodel: {target: a}\n", "data.train: expected {path: FILE}, or a list of these, got 3"
    ),
    "a list of paths that lead nowhere": option("data.train", "[a.jsonl]", "a.jsonl: no such file or folder; check"),
    "prompts of generate without a name": option("data.generation_prompts", "p.jsonl", "{NAME: {path: FILE}}, got p"),
    "prompts without a name": option("data.prompts", "p.jsonl", "{NAME: {path: FILE}}, got p.jsonl"),
    "an option of an earlier Lightning": option("trainer.gpus", "1", "did you mean '--trainer.devices'?"),
    "an option of the optimiser": option("model.lr", "1e-4", "did you mean '--model.optimizer.lr'?"),
    "an option of another section": option("model.batch_size", "4", "did you mean '--data.batch_size'?"),
    "a part of an option's name": option("model.sweep.stop", "true", "did you mean 'stop_at_eos'?"),
    "a list in two words": Case(
        ["PAIR", "--model.sweep.target_temperatures", "0", "1"], "a list is one value: '[0, 1]'"
    ),
    "a list": configuration("[model]\n", "c.yaml: expected sections such as model: and data:, got a list"),
    "a text": configuration("model\n", "got a str"),
    "a Trainer that is a number": configuration(
        "trainer: 3\nmodel: {target: a}\n", "trainer: expected options, such as {max_steps: 100}, got 3"
    ),
    "an option of a callback that is missing": option(
        "trainer.callbacks", "[{class_path: EarlyStopping}]", "its option monitor is missing"
    ),
    "a class of another kind": option("model.divergence", "torch.optim.AdamW", "choose from AdaptiveKL, "),
    "a class's path that leads nowhere": option(
        "model.divergence", "tempspec.plugins.divergences.Skewkl", "did you mean 'SkewKL'?"
    ),
    "a configuration that is no study's": Case(
        ["study", "--config", "WORLD/pair.yaml"], "a study's file names `study`, `experiment` and `drafts`"
    ),
    "a model that is a text": configuration("model: nothing\n", "model"),
    "a run that is a list": configuration("run: [1]\nmodel: {target: a}\n", "run"),
    "a task that is a list": configuration("task: [1]\nmodel: {target: a}\n", "task"),
    "a Python object": configuration(
        "model: {target: !!python/object/apply:pathlib.Path.touch [pwned]}\n", "python/object"
    ),
    "an alias within itself": configuration("model: &a {target: *a}\n", "expected str"),
    "deep": configuration("[" * 3000, "nested by the hundred"),
    "a folder": Case(["fit", "--config", "."], "Path is not a file"),
    "a callable as an argument": option(
        "trainer.callbacks",
        "{class_path: LambdaCallback, init_args: {on_fit_start: os.abort}}",
        "TEMPSPEC_ALLOW=os",
    ),
    "a logger of another package": option("trainer.logger", "{class_path: logging.FileHandler}", "TEMPSPEC_ALLOW"),
    "a drafter of another package": option("model.drafter", "pickle.Unpickler", "TEMPSPEC_ALLOW=pickle"),
}
LINE = '{"text": "w1 w2 w3"}\n'
DATA = {
    "not UTF-8": corpus("d.jsonl", b'{"text": "caf\xe9"}\n', "d.jsonl line 1: not UTF-8 (byte 0xe9)"),
    "UTF-16": corpus("d.jsonl", LINE.encode("utf-16"), "d.jsonl line 1: not UTF-8 (byte 0xff)"),
    "half of a surrogate pair": corpus("d.jsonl", '{"text": "\\ud800"}\n', "half of a surrogate pair"),
    "deep": corpus("d.jsonl", LINE + "[" * 100_000, "line 2: not JSON (maximum recursion"),
    "a number of many digits": corpus("d.jsonl", '{"text": ' + "9" * 5000 + "}", "line 1: not JSON (Exceeds the limit"),
    "not a number": corpus("d.jsonl", '{"text": NaN}', "text is no text (got float)"),
    "a temperature that is none": corpus("d.jsonl", '{"text": "a", "generation_temperature": NaN}', "got nan"),
    "empty": corpus("d.jsonl", "", "got an empty file"),
    "blank": corpus("d.jsonl", '{"text": " "}\n', "every row is blank"),
    "a folder": corpus("folder/d.jsonl", LINE, "no column 'x'", text="x"),
    "a folder of files": Case(
        ["PAIR", "--data.train", "{path: folder}"], "expected a folder saved by", written("folder/d.jsonl", LINE)
    ),
    "another column": corpus("d.jsonl", LINE, "no column 'txt'; did you mean 'text'?", text="txt"),
    "a huge line that is no JSON": corpus("d.jsonl", '{"text": "' + "w1 " * 10**6, "line 1: not JSON"),
    "a pickle": corpus("d.pkl", b"cos\nabort\n(tR.", "expected one of .jsonl"),
    "torn Parquet": corpus("d.parquet", b"PAR1" + b"\x00" * 90, "not a readable .parquet file"),
    "torn gzip": corpus("d.jsonl.gz", b"\x1f\x8b\x08" + b"\x00" * 9, "gzip stream is broken"),
    "a path to the system": option("data.train", "{path: ../../../../../../../etc/passwd}", "expected one of .jsonl"),
    "a path with a null": option("data.train", '{"path": "a\\0b.jsonl"}', "no such file or folder"),
    "a folder that reads another's file": Case(
        ["PAIR", "--data.train", "{path: d}"],
        "leads out of the folder",
        lambda world: [
            written("d/dataset_info.json", "{}")(world),
            written("d/state.json", json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))(world),
        ],
    ),
    "no prompt long enough": prompts(LINE, "prompt set 'p' (p.jsonl) is empty: 1 too short", prompt_tokens=9),
    "turns that are no texts": prompts('{"turns": [1]}\n', "turns is no list of texts"),
    "half of a surrogate pair in a turn": prompts('{"turns": ["\\ud800"]}\n', "turns is no list of texts"),
    "half of a surrogate pair in a category": prompts(
        '{"turns": ["a"], "category": "\\ud800"}\n', "category is no name"
    ),
    "messages without roles": prompts('{"messages": [{"content": "a"}]}\n', "line 1: a message without a role"),
}
MODELS = {
    "only a pickle": model(pickled_weights, "only safetensors are read: convert it"),
    "code of its author's": model(foreign_code, "set trust_remote_code: true"),
    "another vocabulary": model(other_vocabulary, "target and draft need one tokenizer", "draft"),
    "recurrent layers": predict(
        "--model.target=./copy",
        "--model.draft=null",
        "--model.drafter=PromptLookup",
        "--model.loading.attn_implementation=eager",
        says="key-value cache",
        prepare=lambda world: recurrent(shutil.copytree(world / "target", "copy")),
    ),
    "more layers than weights": model(edit_config(num_hidden_layers=5), "a checkpoint of another model"),
    "torn weights": model(lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot load"),
    "no tokenizer": model(lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
    "torn tokenizer": model(lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load a tokenizer"),
    "a list as its configuration": model(lambda folder: (folder / "config.json").write_text("[]"), "cannot load"),
    "a size below zero": model(edit_config(hidden_size=-8), "cannot load a model"),
    "a text as a size": model(edit_config(num_hidden_layers="two"), "expected int, got str"),
    "a file": option("model.target", "WORLD/text.jsonl", "is a file"),
}
CHECKPOINTS = {
    "with code": checkpoint({"state_dict": {}, "x": Touch()}, "holds more than weights and numbers"),
    "without weights": checkpoint({"epoch": 1}, "it has no state_dict"),
    "a tensor": checkpoint(torch.zeros(2), "it has no state_dict"),
    "weights alone": checkpoint({"state_dict": {}}, "it has no pytorch-lightning_version"),
    "weights that are a number": checkpoint(
        {"state_dict": 5, "pytorch-lightning_version": "2.6.4"}, "its state_dict holds no weights"
    ),
    "a folder": option("ckpt_path", ".", "there is no such file"),
}
RUNS = {
    "not a place for files": option("run", "/proc/nowhere", "no such file or folder"),
    "rows of another configuration": held('{"target": "other"}', "holds rows of another configuration"),
    "rows of an unknown origin": held(None, "holds rows of an unknown origin"),
    "rows of a torn origin": held("{", "holds rows of an unknown origin"),
    "rows that are none": held("{}", "predictions.parquet is no readable Parquet file", column=None),
    "rows without keys": held("{}", "holds rows without keys", column="text"),
    "torn fits": Case(
        ["predict", "--config", "WORLD/pair.yaml", "--model.sweep.draft_temperatures", "fitted"],
        "draft_temperatures.json",
        written("runs/pair/validate/draft_temperatures.json", "{"),
    ),
}
OTHERS = {
    "a family of plugins": Case(["plugins", "--family", "divergence"], "divergences"),
    "no folder to export": Case(
        ["export", "--draft", "./no", "--temperature", "1", "--output", "o"], "no such folder: './no'"
    ),
    "a temperature to export at": Case(
        ["export", "--draft", "WORLD/draft", "--temperature", "nan", "--output", "o"], "got nan"
    ),
    "nothing to merge": Case(
        ["export", "--draft", "WORLD/draft", "--temperature", "1", "--output", "o"], "is not conditioned"
    ),
    "no results": Case(["import-results", "no.json"], "no.json"),
    "results that are none": Case(["import-results", "x.json"], "x.json", written("x.json", b"\xff\x00[")),
    "a run without results": Case(["import-results", "WORLD/text.jsonl", "--run", "no"], "text.jsonl"),
    "a server's address": Case(
        ["generate", "--config", "WORLD/pair.yaml", "--server", "file:///etc/passwd"], "file:///etc/passwd"
    ),
    "a served teacher without a folder": Case(
        ["generate", "--config", "WORLD/pair.yaml", "--cache-teacher", "--server", "http://localhost:1"],
        "--cache-teacher needs model.teacher: name at least its folder",
    ),
    "a cache for fit": Case(["PAIR", "--cache-teacher"], "unknown option --cache_teacher: it is an option of generate"),
    "a server for fit": Case(["PAIR", "--server", "http://localhost:1"], "--server is an option of generate"),
    "a short quickstart option": Case(["quickstart", "--out", "x"], "did you mean '--output'?"),
    "a short study option": Case(["study", "--dry"], "did you mean '--dry_run'?"),
    "a short report option": Case(["report", "x", "--outp", "x"], "did you mean '--output'?"),
    "no minutes for a quickstart": Case(
        ["quickstart", "--target", "TARGET", "--minutes", "0"], "--minutes must be above 0"
    ),
    "unknown quickstart option": Case(["quickstart", "--outputt", "x"], "unknown option --outputt"),
}
FAMILIES = {
    "option": OPTIONS,
    "range": RANGES,
    "configuration": CONFIGURATIONS,
    "data": DATA,
    "model": MODELS,
    "checkpoint": CHECKPOINTS,
    "run": RUNS,
    "other": OTHERS,
}
CASES = {f"{family}: {name}": case for family, cases in FAMILIES.items() for name, case in cases.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_one_line(case, run, world):
    case.prepare(world)
    code, _, error = run(*case.arguments(world))
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert case.says in lines[0]
    assert len(lines[0]) < 1000
    assert error.rstrip().endswith(lines[0])
    assert "Traceback" not in error
    assert not Path("pwned").exists()

"""What serving engines do unless told otherwise: to a target's law, and by the name of a draft's folder (floor 5)."""

from transformers import GenerationConfig

from tempspec.decoding.sweep import Sweep

__all__ = ["misread_note", "serving_note", "sizes_note"]

_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What vLLM and SGLang take from a generation_config.json, and the values that change nothing."""


def serving_note(config: GenerationConfig, sweep: Sweep, *, generating: bool) -> str:
    """One line that names what the target's generation configuration says and the run does otherwise; else empty.

    Args:
        config: the target's.
        sweep: what is decoded.
        generating: whether the target's own text is written.

    >>> serving_note(GenerationConfig(), Sweep(), generating=False)
    ''
    """
    option = "generation_temperatures" if generating else "target_temperatures"
    done = {"temperature": getattr(sweep, option)} | {
        name: [getattr(sweep, name)] for name in ("top_k", "top_p", "min_p")
    }
    named = {name: getattr(config, name, None) for name in _NEUTRAL}
    other = {
        name: value
        for name, value in named.items()
        if value is not None and value != _NEUTRAL[name] and value not in done.get(name, [])
    }
    if not other:
        return ""
    said = ", ".join(f"{name} {value:g}" for name, value in other.items())
    options = [f"model.sweep.{option if name == 'temperature' else name}" for name in other if name in done]
    remedy = [f"{', '.join(options)} {'sets' if len(options) == 1 else 'set'} the same here"] if options else []
    remedy += ["there is no option for a repetition_penalty"] if "repetition_penalty" in other else []
    return (
        f"the target's generation_config.json names {said}, which serving engines apply by default and this run does "
        f"not; {'; '.join(remedy)}"
    )


_METHODS = {"eagle-": "eagle", "eagle3": "eagle3", "dflash": "dflash", "dspark": "dspark"}
"""Parts of a draft's path that vLLM takes for a method, whatever method it is given (seen in 0.32)."""


def misread_note(folder: str, *, head: bool) -> str:
    """One line where vLLM would read a draft's folder as another method's, by its path; else empty.

    Args:
        folder: as it would be given to vLLM.
        head: whether it holds an EAGLE-3 head, and not a draft model.

    >>> misread_note("runs/eagle-trial/fit/draft", head=False).partition(":")[0]
    'vLLM takes a draft in runs/eagle-trial/fit/draft for the method eagle, because of "eagle-" in its path'
    >>> misread_note("runs/trial/fit/draft", head=False), misread_note("runs/eagle3/fit/head", head=True)
    ('', '')
    """
    found = next((part for part in _METHODS if part in folder.lower()), None)
    if found is None or (head and found == "eagle3"):
        return ""
    return (
        f'vLLM takes a draft in {folder} for the method {_METHODS[found]}, because of "{found}" in its path: copy it '
        "to a folder with another name before you serve it"
    )


def sizes_note(draft: int, target: int, folder: str, name: str) -> str:
    """One line where vLLM would refuse a draft model, whose output must have as many rows as the target's; else empty.

    Args:
        draft: `vocab_size` of its config.json.
        target: the target's.
        folder: where the draft is.
        name: the target's.

    >>> sizes_note(151936, 152064, "runs/a/fit/draft", "models/b").partition(":")[0]
    'vLLM refuses a draft model with vocab_size 151936 for a target with 152064'
    >>> sizes_note(32000, 32000, "runs/a/fit/draft", "models/b")
    ''
    """
    if draft == target:
        return ""
    return (
        f"vLLM refuses a draft model with vocab_size {draft} for a target with {target}: "
        f"`tempspec export --draft {folder} --target {name} --output OTHER` writes one that it takes"
    )

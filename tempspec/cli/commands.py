"""The subcommands, and a line of each; it imports nothing (floor 6)."""

__all__ = ["COMMANDS"]

COMMANDS = {
    "quickstart": ("tempspec.cli.quickstart", "start here: all of it in minutes, offline, on a laptop CPU"),
    "generate": ("tempspec.cli.lightning", "let the target write the text to train on"),
    "fit": ("tempspec.cli.lightning", "distil a draft from a target, or train a model on text"),
    "validate": ("tempspec.cli.lightning", "acceptance at every pair of temperatures, without decoding"),
    "test": ("tempspec.cli.lightning", "the same as validate, on the test sets"),
    "predict": ("tempspec.cli.lightning", "decode with the draft: acceptance, tokens per call, speed-up"),
    "report": ("tempspec.cli.report", "a page with figures and tables of finished runs or studies"),
    "study": ("tempspec.cli.study", "a grid of drafts, verifiers and temperatures, one command"),
    "plugins": ("tempspec.cli.plugins", "list the installed plugins, each with its package and paper"),
    "export": ("tempspec.cli.export", "merge, resize or convert a draft or head for an engine"),
    "check-head": ("tempspec.cli.check_head", "what vLLM or SGLang would misread in an EAGLE-3 head"),
    "serve-check": ("tempspec.cli.serve_check", "whether a live engine accepts what predict measures here"),
    "import-results": ("tempspec.cli.import_results", "accepted lengths of vLLM, SGLang or llama.cpp, next to ours"),
}
"""Subcommand to the module whose `main(argv)` runs it, and its line in `--help`."""

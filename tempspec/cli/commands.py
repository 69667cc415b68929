"""The subcommands, and a line of each; it imports nothing (floor 6)."""

__all__ = ["COMMANDS"]

COMMANDS = {
    "fit": ("tempspec.cli.lightning", "distil a draft from a target, or train a model on text"),
    "validate": ("tempspec.cli.lightning", "acceptance at every pair of temperatures, without decoding"),
    "test": ("tempspec.cli.lightning", "as validate, on the test sets"),
    "predict": ("tempspec.cli.lightning", "decode with the draft: acceptance, tokens per target call, speed-up"),
    "generate": ("tempspec.cli.lightning", "the target's own text at a chosen temperature"),
    "report": ("tempspec.cli.report", "a page with figures and tables of finished runs or studies"),
    "export": ("tempspec.cli.export", "a draft or head as an engine takes it: one temperature, format, vocab_size"),
    "check-head": ("tempspec.cli.check_head", "what vLLM and SGLang would read otherwise in an EAGLE-3 head"),
    "import-results": ("tempspec.cli.import_results", "accepted lengths of vLLM, SGLang or llama.cpp, next to ours"),
    "serve-check": ("tempspec.cli.serve_check", "whether a live engine accepts what predict measures here"),
    "study": ("tempspec.cli.study", "a grid of drafts, verifiers and temperatures, one command"),
    "plugins": ("tempspec.cli.plugins", "what is registered, with its origin and its doc line"),
    "quickstart": ("tempspec.cli.quickstart", "all of it in minutes, offline, on a laptop CPU"),
}
"""Subcommand to the module whose `main(argv)` runs it, and its line in `--help`."""

"""The sections that one forward pass of each model is enough for (floor 5)."""

from collections.abc import Iterator

from tempspec.metrics.bootstrap import Estimate, bootstrap_compute
from tempspec.metrics.prefixes import prefix_split
from tempspec.metrics.ratio import to_estimate
from tempspec.reporting.answers import contrast
from tempspec.reporting.charts import Chart, curves, forest, heatmap
from tempspec.reporting.page_tables import Field, Sheet
from tempspec.reporting.runs import Analytic, Collection, MeasuredDraft
from tempspec.reporting.sections.common import TEMPERATURE, Section, drafting_pairs, slug

__all__ = ["drafting", "prefixes", "temperatures"]


def temperatures(collection: Collection) -> Section:
    """Maps over the two temperatures, and acceptance against the entropy of the target."""
    charts: list[Chart] = []
    rows: list[list[Field]] = []
    nothing = Estimate.nothing()
    entropy: dict[str, dict[str, dict[float, Estimate]]] = {}
    for draft in collection.drafts:
        for name, sums in collection.texts(draft).items():
            found = _estimates(sums, "analytic_acceptance")
            best = [max((k for k in found if k[0] == t), key=lambda k: found[k].value) for t in {k[0] for k in found}]
            title = f"Analytic acceptance: {draft.name}, {name}"
            axes = {"x": TEMPERATURE, "y": "draft temperature", "mark": "best draft temperature"}
            rows += [[draft.name, name, *key, found[key], found.get((key[0], key[0]), nothing)] for key in sorted(best)]
            charts.append(heatmap(slug("map", draft.name, name), title, found, sorted(best), **axes))
            entropy_at = {t: e.value for (t, _), e in _estimates(sums, "target_entropy").items()}
            points = {entropy_at[t]: found[t, t] for t in entropy_at if (t, t) in found}
            entropy.setdefault(name, {})[draft.name] = points
    for name, found_curves in entropy.items():
        title, x, y = f"Entropy against acceptance: {name}", "entropy of the target (nats)", "analytic acceptance"
        charts.append(curves(slug("entropy", name), title, found_curves, x=x, y=y, top=1.0, ticks=False))
    columns = ["draft", "text", "T", "best draft T", "analytic acceptance", "at draft T = T"]
    sheets = [Sheet("draft-temperatures", "Best draft temperatures", columns, rows)] if rows else []
    if gains := _consistent_gains(collection):
        columns = ["text", "T", "trained at T instead of at", "difference in acceptance"]
        sheets.append(Sheet("trained", "What training at the temperature of decoding changes", columns, gains, True))
    return Section(
        "analytic",
        "Temperatures of target and draft",
        "From one forward pass of each model.",
        [*charts, *_trained(collection)],
        sheets,
    )


def _consistent_gains(collection: Collection) -> list[list[Field]]:
    """The draft that was trained at T against every other one, at T, paired."""
    drafts = {temperature: collection.texts(draft) for temperature, draft in collection.trained_at.items()}
    rows: list[list[Field]] = []
    for temperature, texts in sorted(drafts.items()):
        key = ("analytic_acceptance", temperature, temperature)
        for other, others in sorted(drafts.items()):
            for name in (
                name for name in texts if other != temperature and key in texts[name] and key in others.get(name, {})
            ):
                rows.append([name, temperature, other, contrast((1, texts[name][key]), (-1, others[name][key]))])
    return rows


def _trained(collection: Collection) -> Iterator[Chart]:
    """Train temperature x decoding temperature, where two or more drafts differ in that alone."""
    drafts = {temperature: collection.texts(draft) for temperature, draft in collection.trained_at.items()}
    for name in dict.fromkeys(name for texts in drafts.values() for name in texts):
        found = {
            (t, temperature): estimate
            for temperature, texts in drafts.items()
            for (t, d), estimate in _estimates(texts.get(name, {}), "analytic_acceptance").items()
            if t == d
        }
        diagonal = [key for key in found if key[0] == key[1]]
        axes = {"x": TEMPERATURE, "y": "train temperature", "mark": "equal temperatures"}
        yield heatmap(slug("trained", name), f"Trained at, decoded at: {name}", found, diagonal, **axes)


def drafting(collection: Collection) -> Section:
    """Proposals that are sampled against proposals of the likeliest token."""
    charts = []
    for draft in collection.drafts:
        for name, sums in collection.texts(draft).items():
            found = {
                f"T = {t:g}": contrast((1, value), (-1, sums["argmax_acceptance", t, d]))
                for (metric, t, d), value in sums.items()
                if metric == "analytic_acceptance" and t == d > 0 and ("argmax_acceptance", t, d) in sums
            }
            if found:
                title = f"Sampled minus argmax drafting: {draft.name}, {name}"
                charts.append(forest(slug("argmax", draft.name, name), title, found, x="difference in acceptance"))
        for name in dict.fromkeys(cell.prompt_set for cell in draft.estimates):
            if gains := _decoded_gains(draft, name):
                title = f"Sampled minus argmax drafting, decoded: {draft.name}, {name}"
                x = "difference in block efficiency (tokens / call)"
                charts.append(forest(slug("argmax-decoded", draft.name, name), title, gains, x=x))
    text = "What proposals sampled at the target's temperature gain over proposing the likeliest token, paired."
    return Section("drafting", "Sampled against argmax drafting", text, charts)


def _decoded_gains(draft: MeasuredDraft, name: str) -> dict[str, Estimate]:
    """Block efficiency of sampled minus argmax proposals, by verifier and temperature; where both were decoded."""
    found = {}
    for sampled, argmax in drafting_pairs(draft):
        if sampled.prompt_set == name:
            gain, loss = (draft.metrics[cell].block_efficiency.sums() for cell in (sampled, argmax))
            found[f"T = {sampled.target_temperature:g}, {sampled.verifier}"] = contrast((1, gain), (-1, loss))
    return found


def prefixes(collection: Collection) -> Section:
    """How much acceptance falls because of the distributions, and how much because of the prefixes."""
    charts, ref, metric = [], collection.reference, "analytic_acceptance"
    rows: list[list[Field]] = []
    for draft in collection.drafts:
        for name, fixed in collection.prefixes.fixed.items():
            found: dict[str, Estimate] = {}
            for temperature, sampled in collection.prefixes.sampled.get(name, {}).items():
                t = float(temperature)
                keys = [(fixed, metric, ref, ref), (fixed, metric, t, t), (sampled, metric, t, t)]
                if all(key in draft.analytic for key in keys):
                    split = prefix_split(*(draft.analytic[key] for key in keys))
                    found |= {f"T = {t:g}, distributions": split.laws, f"T = {t:g}, prefixes": split.prefixes}
                    rows.append([draft.name, name, t, split.laws, split.prefixes, split.fall])
            if found:
                title = f"Fixed against sampled prefixes: {draft.name}, {name}"
                charts.append(forest(slug("prefixes", draft.name, name), title, found, x="fall of acceptance"))
    text = f"What acceptance loses from T = {ref:g}: because the distributions differ, and because the prefixes do."
    columns = ["draft", "prompts", "T", "because of the distributions", "because of the prefixes", "fall in all"]
    sheets = [Sheet("prefixes", f"Fall of analytic acceptance from T = {ref:g}", columns, rows, True)] if rows else []
    return Section("prefixes", "Fixed against sampled prefixes", text, charts, sheets)


def _estimates(sums: Analytic, metric: str) -> dict[tuple[float, float], Estimate]:
    """A metric by (T, draft T), in ascending order."""
    own = sorted(key for key in sums if key[0] == metric)
    return {key[1:]: to_estimate(bootstrap_compute(sums[key]))[0] for key in own}

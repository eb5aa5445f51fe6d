"""The page of a check of data."""

from collections.abc import Mapping

from corelens.data import Sample, evidence_tokens, prepare_batch
from corelens.model import HookedMLLM
from corelens.reports.common import ANSWER_COLUMNS, answer_row
from corelens.reports.page import Page
from corelens.study.data_check import DataCheck
from corelens.viz import attention_over_media


def data_page(check: DataCheck, model: HookedMLLM) -> Page:
    """Counts, what can be measured, a sample as the model gets it, answers, and every refused row."""
    lead = f"Samples: {check.counts['samples']:,}. Refused rows: {len(check.refused):,}."
    report = Page(f"What can be measured on {check.name}", lead)
    report.table(
        ["to measure", "possible", "since"], [[one.subject, one.verdict, one.reason] for one in check.findings]
    )
    if check.example is not None:
        _add_example(report, check.example, model)
    if check.answers:
        report.heading(f"What {model.cfg.model_name} answers")
        report.table(ANSWER_COLUMNS, [answer_row(answer) for answer in check.answers])
    report.heading("What the data hold")
    report.facts({name: f"{n:,}" for name, n in check.counts.items()} | {"rules": named_counts(check.rules)})
    if tasks := named_counts(check.tasks):
        report.facts({"kinds of questions": tasks})
    for title, rows in (("Refused rows", check.refused), ("Samples that cannot be measured", check.unmeasurable)):
        if rows:
            report.heading(title)
            report.table(["row", "reason"], [[row.id, row.reason] for row in rows])
    return report


def named_counts(counts: Mapping[str, int]) -> str:
    """Names with their numbers; without what has no name."""
    return ", ".join(f"{name} ({n:,})" for name, n in counts.items() if name)


def _add_example(report: Page, sample: Sample, model: HookedMLLM) -> None:
    """The prompt of a sample, and its pictures with the tokens that count as evidence."""
    report.heading(f"Sample {sample.id}")
    inputs = prepare_batch(model, [sample])
    report.text("".join(part if isinstance(part, str) else f"[picture {part + 1}] " for part in sample.message))
    pictures = sample.pictures
    if not pictures or sample.videos:
        return
    tokens = evidence_tokens([sample], inputs.tokens).float() if sample.evidence else inputs.tokens.visual.float() * 0
    share = tokens[0] / tokens[0].sum().clamp(min=1)
    title = f"{int((tokens > 0).sum())} of {int(inputs.tokens.visual.sum())} visual tokens count as evidence"
    try:
        figure = attention_over_media(pictures, {"evidence": share}, inputs.tokens, title, sample.evidence)
    except ValueError as cause:
        report.text(str(cause))
        return
    # Lighter than attention, so that the evidence is seen through it.
    figure.update_layout(coloraxis_showscale=False, coloraxis_cmax=3 * float(share.max()) or 1, title_subtitle_text="")
    report.figures(figure, height=440)

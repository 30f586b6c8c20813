"""The model write_card of a bundle, written from its other files."""

from __future__ import annotations

from typing import Any

from ecapa_jax.scoring.config import scoring_text


def write_card(document: dict[str, Any], operating_points: list[dict[str, Any]], parity: dict[str, Any]) -> str:
    """Writes the model card in Markdown: the model, its origin, published and measured figures, and its proof."""
    provenance, ecapa, fbank = document["provenance"], document["config"]["ecapa"], document["config"]["fbank"]
    lines = [
        f"# {provenance.get('name') or provenance.get('source', 'ECAPA-TDNN')}",
        "",
        "ECAPA-TDNN speaker encoder, an ecapa-jax bundle: `ecapa_jax.load(directory)`.",
        "",
        f"- network: {ecapa['channels'][0]} channels, {len(ecapa['channels']) - 1} SE-Res2 blocks, "
        f"embedding of {ecapa['embedding_dim']}",
        f"- front end: {fbank['n_mels']} mel bands ({fbank['mel_scale']}, {fbank['window']}), "
        f"{fbank['sample_rate']} Hz, channel rule `{fbank['channel']}`",
    ]
    threshold = document["scoring"]["threshold"]
    lines += [f"- threshold: {'none' if threshold is None else f'{threshold:g}, accept at this score or above'}"]
    lines += [f"- scoring: {scoring_text(document['scoring'])}"]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in provenance.items() if _is_plain(value)]
    lines += _format_section("Published figures", provenance.get("published", {}))
    lines += _format_section("Training", provenance.get("training", {}))
    lines += [f"\n{paragraph}" for paragraph in provenance.get("notes", [])]
    if operating_points:
        lines += [
            "",
            "## Operating points",
            "",
            "| threshold | FAR % | FRR % | EER % | trials |",
            "|--:|--:|--:|--:|---|",
        ]
        lines += [_format_operating_point(point) for point in operating_points]
    lines += _format_section("Conversion", parity)
    lines += _format_errors(parity.get("errors", {}))
    return "\n".join(lines) + "\n"


def _format_operating_point(point: dict[str, Any]) -> str:
    low_high = " [{:.2f}, {:.2f}]".format(*(100 * x for x in point["eer_interval"])) if "eer_interval" in point else ""
    eer = f"{100 * point['eer']:.2f}{low_high}" if "eer" in point else ""
    rates = f"{point['threshold']:.4f} | {100 * point['far']:.2f} | {100 * point['frr']:.2f}"
    return f"| {rates} | {eer} | {point['trials']} |"


def _format_errors(errors: dict[str, dict[str, float]]) -> list[str]:
    rows = [f"| {name} | {error['max_abs_over_max']:.1e} | {error['cosine']:.7f} |" for name, error in errors.items()]
    return ["", "| stage | max error / max | cosine |", "|---|--:|--:|", *rows] if rows else []


def _format_section(title: str, values: dict[str, Any]) -> list[str]:
    rows = [f"- {key.replace('_', ' ')}: {value}" for key, value in values.items() if _is_plain(value)]
    return ["", f"## {title}", "", *rows] if rows else []


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)

"""The result of a day with a GPU as a page of Markdown."""


def table(result: dict) -> str:
    """Device and versions, the pieces, the ops, frames and steps a second."""
    figures = {piece["piece"]: piece["figures"] for piece in result["pieces"]}
    parts = [_head(result), _pieces(result["pieces"]), _ops(figures.get("ops", {})), _head_figures(figures)]
    return "\n".join(part for part in parts if part)


def _rows(titles: tuple[str, ...], rows: list[tuple]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""])


def _head(result: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    toy = " (toy sizes: these figures say nothing)" if result["tiny"] else ""
    return (
        f"# A day with {result['devices']} x {result['device']}{toy}\n\n{result['date']}, Python {result['python']}, "
        f"{versions}; {result['runtime']}. {result.get('seconds', 0.0):.0f} s in all.\n"
    )


def _what(piece: dict) -> str:
    """In a few words."""
    f = piece["figures"]
    if "passed" in f:
        failed = f", failed: {', '.join(f['failed'])}" if f["failed"] else ""
        return f"{f['passed']} passed, {f['skipped']} skipped{failed}"
    if "frames" in f:
        return f"{f['frames']} frames, {f['frames'] / max(piece['seconds'], 1e-9):.1f} a second, start included"
    if "steps" in f:
        return ", ".join(f"{stage} {n} steps" for stage, n in f["steps"].items())
    return ""


def _pieces(pieces: list[dict]) -> str:
    rows = [(p["piece"], p["state"], f"{p['seconds']:.0f}", _what(p), f"`{p['command']}`") for p in pieces]
    return _rows(("piece", "state", "s", "what", "command"), rows)


def _ops(f: dict) -> str:
    rows = [
        (
            f"{r['op']} {r['case']}", r["mode"], r["backend"], f"{r['median_ms']:.3f}",
            "-" if r["ratio_to_reference"] is None else f"{r['ratio_to_reference']:.1f}",
            f"{100 * r['share_beside']:.0f} % of {r['bound_beside']}",
        )
        for r in f.get("rows", [])
    ]  # fmt: skip
    if not rows:
        return ""
    ceilings = f["header"]["ceilings"]
    text = f"Ceilings: {ceilings['matmul_gflops']:.0f} GFLOP/s, {ceilings['copy_gbyte_s']:.0f} GB/s.\n\n"
    return text + _rows(("op", "mode", "back end", "median ms", "x reference", "share beside"), rows)


def _head_figures(figures: dict) -> str:
    rows = [
        (f"{r['what']} of {'x'.join(map(str, f['size']))}", r["backend"], f"{r['per_second']:.2f}",
         "-" if r["ratio_to_reference"] is None else f"{r['ratio_to_reference']:.1f}")
        for f in [figures.get("head", {})] for r in f.get("rows", [])
    ]  # fmt: skip
    whole = figures.get("frame", {})
    size = whole.get("size")
    rows += [
        (f"{name}, {size} px", whole["kernels"], f"{1 / s:.2f}", "-") for name, s in whole.get("seconds", {}).items()
    ]
    return _rows(("trained head", "back end", "a second", "x reference"), rows) if rows else ""

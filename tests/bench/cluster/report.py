"""The results as a table and as a picture of how cost grows. Pure, but for writing what it is told to."""

import statistics

COLUMNS = (
    ("shape", "shape", "{}"),
    ("nodes", "nodes", "{:.0f}"),
    ("seconds", "s", "{:.2f}"),
    ("nodes_per_second", "nodes/s", "{:.1f}"),
    ("ratio_to_raw", "of raw", "{:.2f}"),
    ("cpu_seconds", "CPU s", "{:.2f}"),
    ("peak_mib", "peak MiB", "{:.1f}"),
    ("grown_mib", "grown MiB", "{:.1f}"),
    ("own_writes_per_node", "own writes/node", "{:.2f}"),
    ("cluster_writes_per_node", "all writes/node", "{:.2f}"),
    ("bytes_per_node", "bytes/node", "{:.0f}"),
    ("handoff_ms_p50", "hand-off p50 ms", "{:.1f}"),
    ("handoff_ms_p99", "p99 ms", "{:.1f}"),
    ("reconciles_per_run", "turns/run", "{:.1f}"),
    ("largest_object_bytes", "largest object", "{:.0f}"),
)


def medians(repeats: list[dict]) -> dict:
    """Of several measurements of one shape, each figure's median, and the spread of the ratio and the time. Of
    calls by kind, those of which a measurement says nothing were none."""
    summary = dict(repeats[0])
    for key in dict.fromkeys(key for repeat in repeats for key in repeat):
        found = [repeat[key] for repeat in repeats if repeat.get(key) is not None]
        if not found:
            continue
        if all(isinstance(value, dict) for value in found):
            kinds = sorted({kind for value in found for kind in value})
            summary[key] = {kind: statistics.median(value.get(kind, 0) for value in found) for kind in kinds}
        elif all(isinstance(value, (int, float)) for value in found):
            summary[key] = statistics.median(found)
    summary["repeats"] = len(repeats)
    for key in ("ratio_to_raw", "seconds"):
        found = [repeat[key] for repeat in repeats if repeat.get(key) is not None]
        if found:
            summary[f"{key}_spread"] = [min(found), max(found)]
    return summary


def table(summaries: list[dict]) -> str:
    """A row a shape, with `-` where nothing is known; below, what its calls were."""
    rows = [[title for _, title, _ in COLUMNS]]
    for summary in summaries:
        cells = []
        for key, _, form in COLUMNS:
            value = summary.get(key)
            cells.append("-" if value is None else form.format(value))
        if "ratio_to_raw_spread" in summary:
            low, high = summary["ratio_to_raw_spread"]
            at = [key for key, _, _ in COLUMNS].index("ratio_to_raw")
            cells[at] += f" ({low:.2f}-{high:.2f})"
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for summary in summaries:
        if calls := summary.get("own_calls_per_node"):
            often_first = sorted(calls.items(), key=lambda it: -it[1])
            sizes = summary.get("bytes_per_call", {})
            kinds = ", ".join(
                f"{n:.3f} {kind}" + (f" of {sizes[kind]} bytes" if kind in sizes else "") for kind, n in often_first
            )
            lines.append(f"{summary['shape']}, calls a node: {kinds}")
    return "\n".join(lines)


def growth(series: list[tuple[str, str, list[tuple[float, float]]]]) -> str:
    """An SVG with a panel for each (title, unit, points), those of one title in a row: cost against size,
    both from zero, and as a dashed line 1.3 times the cost at the smallest size, which nothing should rise above."""
    width, height, left, top = 360, 240, 60, 40
    panels = []
    rows = list(dict.fromkeys(title for title, _, _ in series))
    columns = dict.fromkeys(rows, 0)
    for title, unit, points in series:
        x_of_panel, y_of_panel = columns[title] * width, rows.index(title) * height
        columns[title] += 1
        most_x = max(x for x, _ in points)
        limit = 1.3 * points[0][1]
        most_y = 1.1 * max(limit, *(y for _, y in points))

        def place(x: float, y: float, most_x: float = most_x, most_y: float = most_y) -> str:
            return f"{left + x / most_x * (width - left - 20):.1f},{height - 40 - y / most_y * (height - 40 - top):.1f}"

        drawn = [
            f'<text x="{left}" y="20" font-weight="bold">{title}</text>',
            f'<polyline points="{place(0, most_y)} {place(0, 0)} {place(most_x, 0)}" fill="none" stroke="black"/>',
            f'<polyline points="{place(0, limit)} {place(most_x, limit)}" stroke="gray" stroke-dasharray="4"/>',
            f'<polyline points="{" ".join(place(*it) for it in points)}" fill="none" stroke="steelblue" stroke-width="2"/>',
        ]
        for x, y in points:
            at = place(x, y).split(",")
            drawn.append(f'<circle cx="{at[0]}" cy="{at[1]}" r="3" fill="steelblue"/>')
            drawn.append(f'<text x="{at[0]}" y="{float(at[1]) - 8:.1f}" text-anchor="middle">{y:.3g}</text>')
            drawn.append(f'<text x="{at[0]}" y="{height - 25}" text-anchor="middle">{x:g}</text>')
        drawn.append(f'<text x="{left}" y="34" fill="gray">{unit}</text>')
        panels.append(f'<g transform="translate({x_of_panel},{y_of_panel})">{"".join(drawn)}</g>')
    size = f'width="{width * max(columns.values())}" height="{height * len(rows)}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(panels)}</svg>\n'

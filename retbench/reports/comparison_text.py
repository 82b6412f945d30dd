"""The text of a comparison: the verdict, the scores, the settings that differ, and the queries that changed most.

Settings that may explain the scores come first. A part that only one run has (an encoder beside BM25) is one line. The
machine and its versions are the last line. `--json` has every setting.
"""

from itertools import groupby

from retbench.reports.comparison import NOT_STATED, Comparison, PairedTest, QueryChange, SettingDifference
from retbench.reports.ranks import ALPHA
from retbench.scoring.significance import MIN_SIGNIFICANT_QUERIES

SHOWN_METRICS = ("ndcg_at_10", "mrr_at_10", "map_at_100", "recall_at_100")
FACTS = ("texts truncated", "dtype")  # what was observed in the run; the settings decide
MACHINE = "machine"
SHORT_CHARACTERS = 48  # two longer values stand below each other
NO_VALUE = "none"


def format_comparison(comparison: Comparison) -> str:
    """Format the comparison as text."""
    parts = [
        [f"A  {comparison.a}", f"B  {comparison.b}"],
        [*(_format_test(comparison.test) if comparison.test else []), *comparison.remarks],
        _format_scores(comparison),
        format_settings(comparison.settings),
        *map(_format_query_change, comparison.moved),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _format_test(test: PairedTest) -> list[str]:
    low, high = test.interval
    return [
        f"{_describe_verdict(test)}: {test.metric} A - B = {100 * test.difference:+.2f} over {test.queries:,} queries "
        f"(95% interval {100 * low:+.2f} to {100 * high:+.2f}), p = {test.p_value:.4f}",
        f"A wins {test.wins.wins:,}, ties {test.wins.ties:,}, loses {test.wins.losses:,}; "
        f"effect size {test.effect:+.2f}",
        _describe_power(test),
    ]


def _describe_verdict(test: PairedTest) -> str:
    if test.p_value > ALPHA:
        return "No significant difference"
    return f"{'A' if test.difference > 0 else 'B'} is significantly better"


def _describe_power(test: PairedTest) -> str:
    """Say which difference the test can find; with few queries it finds none."""
    if test.wins.ties == test.queries:
        return "every query has the same score in both"
    smallest = 2.0 ** (1 - test.queries)
    if test.queries < MIN_SIGNIFICANT_QUERIES:
        return (
            f"no difference over {test.queries} queries can be significant at alpha {ALPHA}: "
            f"the smallest p-value of this test is {smallest:.4f}"
        )
    if test.detectable is None:
        return (
            f"over {test.queries} queries only a difference of the same sign on every query is significant at "
            f"alpha {ALPHA} (p = {smallest:.4f})"
        )
    return (
        f"over {test.queries:,} queries that vary as these do, a true difference of {100 * test.detectable:.2f} is "
        f"significant in about 80% of cases (alpha {ALPHA})"
    )


def _format_scores(comparison: Comparison) -> list[str]:
    """Format the main metric, which is the first one, and the usual metrics."""
    if not comparison.scores:
        return []
    main = next(iter(comparison.scores))
    shown = [metric for metric in comparison.scores if metric == main or metric in SHOWN_METRICS]
    lines = [f"{'score':<16}{'A':>8}{'B':>8}{'A - B':>8}"]
    for metric in shown:
        a, b = comparison.scores[metric]
        lines.append(f"{metric:<16}{100 * a:>8.2f}{100 * b:>8.2f}{100 * (a - b):>+8.2f}")
    hidden = len(comparison.scores) - len(shown)
    return [*lines, f"{hidden} more metrics: --json"] if hidden else lines


def format_settings(settings: list[SettingDifference]) -> list[str]:
    """Format the differing settings, those that may change a score first."""
    if not settings:
        return ["All recorded settings are equal."]
    silent = next((side for side in ("a", "b") if all(getattr(one, side) == NOT_STATED for one in settings)), None)
    if silent and len(settings) > 1:
        return [f"{silent.upper()} states no settings; --json lists those of the other run."]
    machine = [one for one in settings if _get_group(one) == MACHINE]
    facts = [one for one in settings if _get_group(one) in FACTS]
    deciding = _collapse_one_sided([one for one in settings if one not in machine and one not in facts])
    lines = [f"{len(deciding)} settings differ:" if len(deciding) > 1 else "1 setting differs:"] if deciding else []
    lines += [line for one in deciding for line in _format_setting(one)]
    if not deciding:
        lines = ["All settings that may change a score are equal."]
    observed = [one for one in facts if NOT_STATED not in (one.a, one.b)]
    if observed:
        lines += ["Observed in the runs:", *(line for one in observed for line in _format_setting(one))]
    if machine:
        lines.append("Machine and versions: " + "; ".join(_format_machine(one) for one in machine))
    return lines


def _get_group(setting: SettingDifference) -> str:
    return setting.name.partition(".")[0]


def _collapse_one_sided(settings: list[SettingDifference]) -> list[SettingDifference]:
    """Replace the settings of a part that only one run has by one line; a part without a value is `None` there."""
    collapsed: dict[str, SettingDifference] = {}
    for part, members in groupby(settings, key=lambda one: ".".join(one.name.split(".")[:2])):
        group = [one for one in members if (one.a, one.b) not in (("None", NOT_STATED), (NOT_STATED, "None"))]
        sides = {(one.a == NOT_STATED, one.b == NOT_STATED) for one in group}
        if len(group) > 1 and sides in ({(True, False)}, {(False, True)}):
            count = f"{len(group)} settings (--json lists them)"
            a, b = (NO_VALUE, count) if group[0].a == NOT_STATED else (count, NO_VALUE)
            group = [SettingDifference(part, a, b)]
        collapsed |= {one.name: one for one in group}
    return list(collapsed.values())


def _format_setting(setting: SettingDifference) -> list[str]:
    name = setting.name.removeprefix("settings.")
    if len(setting.a) + len(setting.b) <= SHORT_CHARACTERS:
        return [f"  {name}: A {setting.a}, B {setting.b}"]
    return [f"  {name}", f"    A {setting.a}", f"    B {setting.b}"]


def _format_machine(setting: SettingDifference) -> str:
    return f"{setting.name.removeprefix(f'{MACHINE}.')} A {setting.a}, B {setting.b}"


def _format_query_change(change: QueryChange) -> list[str]:
    lines = [f"query {change.query}: A {100 * change.a:.1f}, B {100 * change.b:.1f}"]
    if change.text is not None:
        lines.append(f"  {change.text}")
    lines += [f"  A {number}. {line}" for number, line in enumerate(change.top_a, start=1)]
    return lines + [f"  B {number}. {line}" for number, line in enumerate(change.top_b, start=1)]

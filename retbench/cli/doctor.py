"""retbench doctor: what this machine can do, what is missing, the next step."""

from retbench.cli.command import AsJson, put, put_json, verb


@verb
def doctor(as_json: AsJson = False) -> int:
    """Check this machine and say what to do about each problem."""
    from retbench.pipelines.doctor import checks

    found = list(checks())
    if as_json:
        put_json([check._asdict() for check in found])
    else:
        for check in found:
            put(f"{'ok ' if check.ok else 'NO '} {check.what}: {check.finding}")
            if not check.ok:
                put(f"    next: {check.next_step}")
    return 0

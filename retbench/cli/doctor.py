"""retbench doctor: check this machine and print a next step for each problem."""

from retbench.cli.command import AsJson, cli_command, print_json, print_result


@cli_command
def doctor(as_json: AsJson = False) -> int:
    """Check this machine and print a next step for each problem."""
    from retbench.pipelines.doctor import run_checks

    results = list(run_checks())
    if as_json:
        print_json([check._asdict() for check in results])
    else:
        for check in results:
            print_result(f"{'ok ' if check.ok else 'NO '} {check.name}: {check.finding}")
            if not check.ok:
                print_result(f"    next: {check.next_step}")
    return 0

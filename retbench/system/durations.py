"""A duration in words: seconds, minutes, hours or days, whichever two units a reader needs."""


def format_duration(seconds: float) -> str:
    """Format a duration to whole seconds, from an hour on to minutes, and from two days on to hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days = hours // 24
    if days > 1:
        return f"{days:,} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""The second family of built-in problems: functions with a loop and branches over a total."""

"""The errors of the pure part. Each says what to do and carries the values."""


class SidecarError(Exception):
    """The root of every error this project raises on purpose."""


class SettingsError(SidecarError):
    """The operator has to change a setting; the message names it, its value and the allowed range."""

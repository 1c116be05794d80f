"""Programs on top of NVIDIA's tritonclient package, as users write them; each returns what its user would see.

Run under two releases of the package, in an environment of their own for the older one, so nothing but the package,
numpy and the standard library may be imported here.
"""

ENDED_BY, IT_HUNG = "ended by", "it hung"  # what a program saw that ended by an exception, or did not end

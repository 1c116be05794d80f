"""What the scheduler decided on a day it was known to be right: whoever changes a hash says why in the same commit."""

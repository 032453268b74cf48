"""The values of train.prompts: what the training gives the model to find an object by."""

MIXED = "mixed"  # points and boxes in turn, as micro-sam's training
BOXES = "boxes"
POINTS = "points"
NONE = "none"  # one mask of an image for the union of its objects
PROMPTS = (MIXED, BOXES, POINTS, NONE)

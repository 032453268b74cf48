"""A sweep before submission: its plan, whether all is there that it needs, what it will take."""

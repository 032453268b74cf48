"""What runs inside a job: data, models, training, evaluation. Knows the configuration and the records,
nothing else.
"""

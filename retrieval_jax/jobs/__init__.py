"""What is done with a config or a finished run: train, evaluate, export.

Above the factory, which builds what a job works on; scripts and notebooks call
jobs and show what they return.
"""

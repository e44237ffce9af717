"""Commands of several stages: from images to a report, and the trial that compares training with not training."""

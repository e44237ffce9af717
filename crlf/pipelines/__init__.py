"""Several stages in one command: from images to a report, and a trial of whether to train at all."""

"""What trained weights are worth on photographs: as they are, gone on from, and as a teacher."""

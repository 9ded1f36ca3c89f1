"""loopbox_trainer: owns what runs inside the trainer container: curation, training, export and scoring."""

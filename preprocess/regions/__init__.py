"""Background, head, neck and torso of every frame, and the pictures behind and below the head."""

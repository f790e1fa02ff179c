"""A worker's side of the messages between applications (`servo.cluster`)."""

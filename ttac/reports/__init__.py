"""What ttac tells a person: progress, inspection, comparison, measurement, diagnosis."""

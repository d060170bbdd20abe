"""Evaluation: hold the unlearned model against the original and the retrained one."""

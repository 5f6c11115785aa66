"""Early stopping between trials: one file a rule. A rule is a config and a pure decision function."""

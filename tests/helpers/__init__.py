"""What tests share: configurations, commands, clusters, truths. No test imports another test."""

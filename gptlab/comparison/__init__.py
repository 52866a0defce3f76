"""Runs side by side: effects with intervals, verdicts, a table, a page. It reads run directories, never models."""

"""Ratios measured side by side in one run: `python -m benchmarks.NAME [--json FILE]`, see docs/performance.md."""

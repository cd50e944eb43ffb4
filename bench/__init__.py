"""What Kontext Batch is faster than, and how we know: both sides in one run, medians and ratios.

Owns the comparisons and the table. Refuses figures without their counterpart.
"""

"""Owns made-up head CT in the layout of RSNA: heads, bleeds, studies, planted defects, the command.

It never reads what it wrote: nothing of it is used on real slices.
"""

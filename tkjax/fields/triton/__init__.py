"""Fused fields for the Triton renderer (`tkjax.ops.fused`), named by what they compute; systems register theirs."""

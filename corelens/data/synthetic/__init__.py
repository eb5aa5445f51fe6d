"""Pictures drawn from a seed that know where their evidence is.

Sample n of a seed is the same however many are drawn, and its pictures are drawn when they are looked at.
"""

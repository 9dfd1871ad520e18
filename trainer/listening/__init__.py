"""Owns the way in and out by DICOM's network: who may call, what is taken, when a study is whole, how results leave.

It never predicts: a study that is quiet goes to the worklist, and what that wrote is sent.
"""

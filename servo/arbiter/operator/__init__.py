"""Answers for operators: status, queries, history."""

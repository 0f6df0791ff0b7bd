"""Distributed full-graph training of graph networks, with messages of few bits."""

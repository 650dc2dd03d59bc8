"""Exports of weights (`mforce export`): files, model cards, the hub, layouts, compiled programs."""

"""Coco: a confidential consortium framework."""

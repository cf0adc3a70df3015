"""Model families, one a file, by the pipeline's class in diffusers."""

from bench.families import sd, sdxl

FAMILIES = {family.pipeline: family for family in (sdxl.FAMILY, sd.FAMILY)}

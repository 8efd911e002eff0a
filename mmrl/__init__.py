"""mmrl: one group-relative optimizer for vision-language models, video LLMs and flow-matching generators."""

__version__ = "0.1.0"

"""The network: a flat-token diffusion transformer over text and any number of modalities."""

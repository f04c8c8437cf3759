"""Motion: the temporal modules, and how they ride on a stock UNet. Knows no files and no prompts."""

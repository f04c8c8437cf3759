"""The temporal modules: their architecture, families and places in a UNet."""

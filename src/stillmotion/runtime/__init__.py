"""Device and precision by what the machine does well."""

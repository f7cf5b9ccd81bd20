"""Configurations: their keys (`schema`), how YAML is read (`yaml_file`), and errors (`explain`)."""

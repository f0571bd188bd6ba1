"""What several test files share: references, small hosts, data sets, processes."""

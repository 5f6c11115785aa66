"""The experiment fabric: from a job file to a report. Imports `models`; never the other way round."""

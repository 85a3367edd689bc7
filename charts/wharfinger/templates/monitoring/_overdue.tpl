{{/* Seconds after the last cleanup's begin from which another is overdue: twice the longest pause that the schedule has, be it
that one was left out because a run before it went on, and what a run may take. */}}
{{- define "wharfinger.cleanupOverdue" -}}
{{- add (mul 2 (include "wharfinger.longestPause" .Values.cleanup.schedule | int)) (include "wharfinger.longestRun" .Values.cleanup | int) -}}
{{- end -}}

{{/* Twice what a run takes at most, and what its pod takes to start */}}
{{- define "wharfinger.longestRun" -}}
{{- add (mul 2 .maxSeconds) 600 -}}
{{- end -}}

{{/* Seconds between two times of a schedule, never too few: a list or a range is taken for one time of its kind */}}
{{- define "wharfinger.longestPause" -}}
{{- $named := dict "@hourly" 3600 "@daily" 86400 "@midnight" 86400 "@weekly" 604800 "@monthly" 2678400 -}}
{{- if hasPrefix "@" . -}}
{{- get $named . | default 31622400 -}}
{{- else -}}
{{- $fields := splitList " " . -}}
{{- $pause := 60 -}}
{{- /* Field, seconds of one of its units, and of all of them */ -}}
{{- range list (list 0 60 3600) (list 1 3600 86400) (list 4 86400 604800) (list 2 86400 2678400) (list 3 2678400 31622400) -}}
{{- $field := index $fields (index . 0) -}}
{{- if regexMatch "^[*]/[0-9]+$" $field -}}
{{- $pause = max $pause (min (index . 2) (mul (index . 1) (trimPrefix "*/" $field | int))) -}}
{{- else if not (has $field (list "*" "?")) -}}
{{- $pause = max $pause (index . 2) -}}
{{- end -}}
{{- end -}}
{{- $pause -}}
{{- end -}}
{{- end -}}

{{/* Fails where the namespace has no such Secret, the Secret no such key, or the URL there leads to another port than the
network policies open. (dict "root" $ "value" "secret" "key" "portValue" "port"): without a secret or a key less is looked
at. No URL is ever told. */}}
{{- define "wharfinger.checkSecret" -}}
{{- $check := . -}}
{{- $ := .root -}}
{{- if .secret -}}
{{- $found := lookup "v1" "Secret" $.Release.Namespace .secret -}}
{{- if not $found -}}
{{- fail (printf "%s: the namespace %s has no Secret %s. Make it first, or set preflight to false where it comes later." .value $.Release.Namespace .secret) -}}
{{- end -}}
{{- if .key -}}
{{- $text := get (default dict $found.data) .key -}}
{{- if not $text -}}
{{- fail (printf "The Secret %s has no key %s. Add it, name another key in the values, or set preflight to false." .secret .key) -}}
{{- end -}}
{{- if and .portValue $.Values.networkPolicy.enabled -}}
{{- $wanted := .port | toString -}}
{{- range $port := include "wharfinger.portsOf" ($text | b64dec | trim) | splitList "," | compact -}}
{{- if ne $port $wanted -}}
{{- fail (printf "%s is %s, and %s in the Secret %s leads to port %s: the network policies would not let it through. Set %s." $check.portValue $wanted $check.key $check.secret $port $check.portValue) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of a URL: its hosts' ports, with commas between; of anything else none */}}
{{- define "wharfinger.portsOf" -}}
{{- $usual := dict "postgres" "5432" "postgresql" "5432" "amqp" "5672" "amqps" "5671" "http" "80" "https" "443" -}}
{{- $scheme := regexFind "^[a-z]+" . -}}
{{- if and (hasKey $usual $scheme) (regexMatch "^[a-z]+://" .) -}}
{{- $authority := regexReplaceAll "^[a-z]+://([^/?]*).*$" . "${1}" | splitList "@" | last -}}
{{- range $index, $host := splitList "," $authority -}}
{{- if $index }},{{ end -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $host) | default (get $usual $scheme) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A release's name may have dots, a Service's may not */}}
{{- define "wharfinger.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if contains $name $release -}}
{{- $release | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" $release $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "wharfinger.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of an object; (list $ component) */}}
{{- define "wharfinger.labels" -}}
{{- $ := index . 0 -}}
{{ include "wharfinger.selector" $ }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: wharfinger
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Metadata of a pod; (list $ component labels) */}}
{{- define "wharfinger.podMetadata" -}}
{{- $ := index . 0 -}}
labels:
  {{- include "wharfinger.labels" (list $ (index . 1)) | nindent 2 }}
  {{- with $.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- range $key, $value := index . 2 }}
  {{ $key }}: {{ $value | quote }}
  {{- end }}
annotations:
  wharfinger/settings: {{ include "wharfinger.settingsSum" $ | quote }}
  {{- with $.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* (list $ name) */}}
{{- define "wharfinger.image" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $tagged := $name -}}
{{- if not (regexMatch "[:@][^/]*$" $name) -}}
{{- $tagged = printf "%s:%s" $name (default $.Chart.AppVersion $.Values.image.tag) -}}
{{- end -}}
{{- if and $.Values.image.registry (not (contains "/" $name)) -}}
{{- printf "%s/%s" (trimSuffix "/" $.Values.image.registry) $tagged -}}
{{- else -}}
{{- $tagged -}}
{{- end -}}
{{- end -}}

{{/* A setting's value as text: Helm would write 1000000 as 1e+06 */}}
{{- define "wharfinger.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* Name of a pool's objects; (list $ pool-name). KEDA takes 54 characters at most: keda-hpa- and it are a label. */}}
{{- define "wharfinger.workerName" -}}
{{- $name := printf "%s-worker-%s" (include "wharfinger.fullname" (index . 0)) (index . 1) -}}
{{- if gt (len $name) 54 -}}
{{- printf "%s-%s" ($name | trunc 45 | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* The model that a pool's workers serve; the pool with its defaults */}}
{{- define "wharfinger.model" -}}
{{- if contains "/" .model -}}{{ .name }}{{- else -}}{{ default .name .model }}{{- end -}}
{{- end -}}

{{/* Restarts pods whose ConfigMap has changed */}}
{{- define "wharfinger.settingsSum" -}}
{{- toJson .Values.settings | sha256sum | trunc 16 -}}
{{- end -}}

{{- define "wharfinger.claim" -}}
{{- if .Values.storage.existingClaim -}}
{{- .Values.storage.existingClaim -}}
{{- else -}}
{{- default (printf "%s-files" (include "wharfinger.fullname" .)) .Values.storage.claimName -}}
{{- end -}}
{{- end -}}

{{- define "wharfinger.databaseSecret" -}}
{{- if .Values.evaluation.enabled -}}
{{ include "wharfinger.fullname" . }}-evaluation-database
{{- else -}}
{{- required "database.existingSecret: name the Secret with the URLs of PostgreSQL, or set evaluation.enabled for a first try" .Values.database.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "wharfinger.queueSecret" -}}
{{- if .Values.evaluation.enabled -}}
{{ include "wharfinger.fullname" . }}-evaluation-queue
{{- else -}}
{{- required "queue.existingSecret: name the Secret with the URLs of RabbitMQ, or set queue.enabled to false" .Values.queue.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* What the cluster's Secret of that name holds already, and the rest as it is made now; (list $ name made) */}}
{{- define "wharfinger.kept" -}}
{{- $former := (lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1)).data | default dict -}}
{{- $lacking := dict -}}
{{- range $key, $value := index . 2 -}}
{{- if not (hasKey $former $key) -}}
{{- $_ := set $lacking $key $value -}}
{{- end -}}
{{- end -}}
{{- with $former -}}
data:
  {{- toYaml . | nindent 2 }}
{{ end -}}
{{- with $lacking -}}
stringData:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "wharfinger.adminKeySecret" -}}
{{- default (printf "%s-admin-key" (include "wharfinger.fullname" .)) .Values.adminKey.existingSecret -}}
{{- end -}}

{{/* Where a cluster sets an fsGroup, and the storage heeds it, millions of files are not gone through for each pod. */}}
{{- define "wharfinger.restricted" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
fsGroupChangePolicy: OnRootMismatch
{{- end -}}

{{- define "wharfinger.podSecurityContext" -}}
{{- mergeOverwrite (include "wharfinger.restricted" . | fromYaml) (deepCopy .Values.podSecurityContext) | toYaml -}}
{{- end -}}

{{- define "wharfinger.containerSecurityContext" -}}
{{- $ours := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- mergeOverwrite $ours (deepCopy .Values.containerSecurityContext) | toYaml -}}
{{- end -}}

{{/* What a pod begins with; (list $ component) */}}
{{- define "wharfinger.podSpec" -}}
{{- $ := index . 0 -}}
serviceAccountName: {{ include "wharfinger.fullname" $ }}-{{ index . 1 }}
automountServiceAccountToken: {{ and $.Values.cluster.enabled (eq (index . 1) "broker") }}
enableServiceLinks: false
{{- include "wharfinger.pullSecrets" $ }}
securityContext:
  {{- include "wharfinger.podSecurityContext" $ | nindent 2 }}
{{- end -}}

{{- define "wharfinger.pullSecrets" }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where a pod may run; its values */}}
{{- define "wharfinger.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Replicas on as many nodes and zones as there are; (list $ component pool) */}}
{{- define "wharfinger.spread" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $pool := index . 2 -}}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    # Those of a release are spread without regard to those of the one before, which end.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "wharfinger.selector" $ | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
        {{- with $pool }}
        wharfinger/pool: {{ . }}
        {{- end }}
  {{- end }}
{{- end -}}

{{/* A process's environment; (list $ url-key own-settings) */}}
{{- define "wharfinger.env" -}}
{{- $ := index . 0 -}}
- name: WHARF_INSTANCE
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: WHARF_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "wharfinger.databaseSecret" $ }}
      key: {{ index . 1 }}
{{- if and $.Values.database.directKeySuffix (not $.Values.evaluation.enabled) }}
- name: WHARF_DIRECT_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "wharfinger.databaseSecret" $ }}
      key: {{ index . 1 }}{{ $.Values.database.directKeySuffix }}
{{- end }}
{{- if $.Values.database.caSecret }}
- name: PGSSLROOTCERT
  value: /etc/wharf/database/ca.crt
{{- end }}
- name: HOME
  value: /tmp
{{- range $name, $value := index . 2 }}
- name: WHARF_{{ $name }}
  value: {{ include "wharfinger.setting" $value | quote }}
{{- end }}
{{- end -}}

{{/* (list $ url-key) */}}
{{- define "wharfinger.queueEnv" -}}
{{- $ := index . 0 -}}
{{- if $.Values.queue.enabled }}
- name: WHARF_AMQP_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "wharfinger.queueSecret" $ }}
      key: {{ index . 1 }}
{{- if $.Values.queue.caSecret }}
- name: WHARF_AMQP_CA_FILE
  value: /etc/wharf/queue/ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{/* What sends traces is told so */}}
{{- define "wharfinger.telemetryEnv" -}}
{{- with .Values.telemetry }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.telemetry.headersKey }}
{{- end }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler }}
{{- with .samplerArgument }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Mounts and volumes of authorities; (list $ with-queue) */}}
{{- define "wharfinger.mounts" -}}
{{- $ := index . 0 -}}
- name: tmp
  mountPath: /tmp
{{- if $.Values.database.caSecret }}
- name: database-ca
  mountPath: /etc/wharf/database
  readOnly: true
{{- end }}
{{- if and (index . 1) $.Values.queue.enabled $.Values.queue.caSecret }}
- name: queue-ca
  mountPath: /etc/wharf/queue
  readOnly: true
{{- end }}
{{- end -}}

{{/* (list $ with-queue with-files) */}}
{{- define "wharfinger.volumes" -}}
{{- $ := index . 0 -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ $.Values.tmpSize }}
{{- if $.Values.database.caSecret }}
- name: database-ca
  secret:
    secretName: {{ $.Values.database.caSecret }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- if and (index . 1) $.Values.queue.enabled $.Values.queue.caSecret }}
- name: queue-ca
  secret:
    secretName: {{ $.Values.queue.caSecret }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- if index . 2 }}
- name: files
  persistentVolumeClaim:
    claimName: {{ include "wharfinger.claim" $ }}
{{- end }}
{{- end -}}

{{/* Waits until the database, and the volume where `with-files`, have the shape that this release needs: folders that
are mounted by subPath must be there. (list $ url-key image with-files) */}}
{{- define "wharfinger.wait" -}}
{{- $ := index . 0 -}}
- name: wait-for-migration
  image: {{ include "wharfinger.image" (list $ (index . 2)) }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  args: [migrate, --wait, {{ $.Values.migrate.waitSeconds | quote }}]
  env:
    {{- include "wharfinger.env" (list $ (index . 1) dict) | nindent 4 }}
    {{- if index . 3 }}
    - name: WHARF_VOLUME
      value: /srv/wharf
    {{- end }}
  resources:
    {{- toYaml $.Values.migrate.resources | nindent 4 }}
  securityContext:
    {{- include "wharfinger.containerSecurityContext" $ | nindent 4 }}
  volumeMounts:
    {{- include "wharfinger.mounts" (list $ false) | nindent 4 }}
    {{- if index . 3 }}
    - name: files
      mountPath: /srv/wharf
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "wharfinger.settingsFrom" -}}
envFrom:
  - configMapRef:
      name: {{ include "wharfinger.fullname" . }}-settings
{{- end -}}

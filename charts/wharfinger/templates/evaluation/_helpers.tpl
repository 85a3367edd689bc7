{{/* A StatefulSet of one pod and its Service; (dict "root" $ "name" "port" "values" "env" "mounts" "probe") */}}
{{- define "wharfinger.evaluation" -}}
{{- $ := .root -}}
{{- $name := printf "%s-%s" (include "wharfinger.fullname" $) .name -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  labels:
    {{- include "wharfinger.labels" (list $ .name) | nindent 4 }}
spec:
  selector:
    {{- include "wharfinger.selector" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  ports:
    - name: {{ .name }}
      port: {{ .port }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  labels:
    {{- include "wharfinger.labels" (list $ .name) | nindent 4 }}
spec:
  serviceName: {{ $name }}
  replicas: 1
  selector:
    matchLabels:
      {{- include "wharfinger.selector" $ | nindent 6 }}
      app.kubernetes.io/component: {{ .name }}
  template:
    metadata:
      # Nothing that changes with the chart or its settings: an upgrade leaves the database alone.
      labels:
        {{- include "wharfinger.selector" $ | nindent 8 }}
        app.kubernetes.io/component: {{ .name }}
        app.kubernetes.io/part-of: wharfinger
        {{- with $.Values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $.Values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- include "wharfinger.pullSecrets" $ | indent 6 }}
      terminationGracePeriodSeconds: 60
      securityContext:
        {{- $context := include "wharfinger.restricted" $ | fromYaml }}
        {{- if and .values.podSecurityContext (not ($.Capabilities.APIVersions.Has "security.openshift.io/v1")) }}
        {{- $context = mergeOverwrite $context (deepCopy .values.podSecurityContext) }}
        {{- end }}
        {{- toYaml $context | nindent 8 }}
      containers:
        - name: {{ .name }}
          image: {{ .values.image }}
          imagePullPolicy: {{ $.Values.image.pullPolicy }}
          {{- with .args }}
          args:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          env:
            {{- toYaml .env | nindent 12 }}
          ports:
            - name: {{ .name }}
              containerPort: {{ .port }}
          startupProbe:
            {{- toYaml .probe | nindent 12 }}
            periodSeconds: 5
            timeoutSeconds: 20
            failureThreshold: 60
          livenessProbe:
            tcpSocket: {port: {{ .name }}}
            periodSeconds: 20
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            {{- toYaml .probe | nindent 12 }}
            periodSeconds: 15
            timeoutSeconds: 20
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            {{- include "wharfinger.containerSecurityContext" $ | nindent 12 }}
          volumeMounts:
            {{- range $volume, $path := .mounts }}
            - name: {{ $volume }}
              mountPath: {{ $path }}
            {{- end }}
      volumes:
        {{- range $volume, $path := .mounts }}
        {{- if ne $volume "data" }}
        - name: {{ $volume }}
          emptyDir: {}
        {{- end }}
        {{- end }}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels:
          {{- include "wharfinger.selector" $ | nindent 10 }}
          app.kubernetes.io/component: {{ .name }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .values.className }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ .values.size }}
{{- end -}}

{{/* A server's password: the one that it was made with, or a new one; (list $ secret) */}}
{{- define "wharfinger.evaluationPassword" -}}
{{- $former := (lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1)).data | default dict -}}
{{- get $former "password" | b64dec | default (randAlphaNum 32) -}}
{{- end -}}
